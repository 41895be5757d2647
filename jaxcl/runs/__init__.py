"""Runs from a command line: presets, a folder that can be resumed, processes, reports.

==================  =================================================================
``experiment``      ``Experiment``: settings with presets; refusals of bad ones
``command``         ``main``: from a command line to a run and its report
``folder``          ``RunFolder``: what a folder of runs holds, and how it is read
``trials``          ``Trial``: one run; ``run_trials`` does all that are left
``jobs``            the processes that do them
``batch, launch``   a grid of settings as one job, here or on a cluster
==================  =================================================================

Import from the modules: the command imports the others when the settings are known to be
good, because they need JAX and its import takes a second.
"""
