"""What :class:`lit_distill.LossComposer` is made of.

* :mod:`.evaluated`: the terms, and the value of each on the signals of a step.
* :mod:`.tryout`: one example batch before training: losses are sized, terms that teach nobody are refused.
* :mod:`.compiled`: models and terms of a step as one graph of ``torch.compile``.
* :mod:`.checks`: what a loss expects of its signals; :mod:`.graph`: what the graph of a value says of its loss.
* :mod:`.positions`: masks, ignored labels and shifts.
* :mod:`.ignored`: positions that do not count; :mod:`.trial`: a run of modules that leaves no trace.
"""
