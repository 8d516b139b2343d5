"""Loops for the processor that are compiled where they run, if a C++ compiler is there.

torch makes a pass over memory for each operator; these take a neuron through all its steps while it
is in the cache. They get the same noise as torch's operators, and give the same numbers to float
precision. Nothing needs them: without a compiler torch does all of it.
"""
