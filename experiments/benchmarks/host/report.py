"""The tables of a run, by the report of all benchmarks."""

from experiments.benchmarks.report import report as report
