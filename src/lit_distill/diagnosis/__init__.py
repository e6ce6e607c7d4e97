"""What a module does before and during a step, as ``doctor`` and ``report`` show it.

* :mod:`.diagnose`: a few samples of every model: accuracies, gradients, terms.
* :mod:`.cost`: time and memory of each part of a step.
"""
