"""What ``doctor`` looks at.

* :mod:`.diagnose`: a few samples of every model: accuracies, gradients, terms.
* :mod:`.cost`: time and memory of each part of a step.
"""
