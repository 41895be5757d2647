"""Batteries of damaged and hostile inputs.

A battery makes small valid inputs, damages each at random, and gives it to the library.
An input is either used, or refused by an ``InputError`` of one line; another exception, a
message of more lines or a hang is a failure, kept with the number that makes it again::

    python -m tests.fuzz.rows --count 5000 --seed 0      # one line of JSON
    python -m tests.fuzz.rows --seed 0 --only 17         # input 17, with its traceback
"""
