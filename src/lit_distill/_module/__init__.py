"""What :class:`lit_distill.DistillModule` is made of.

* :mod:`.preflight`: what is checked before training, on one example batch.
* :mod:`.step`: what a training step leaves until it is over.
* :mod:`.optimized`: its optimizer and schedule; :mod:`.compiling`: its compiled steps.
* :mod:`.evaluated`: what validation and test run and log; :mod:`.metrics` holds the means of their terms.
* :mod:`.frozen`, :mod:`.checkpointed`: frozen models stay what they are; checkpoints hold the rest.
* :mod:`.train_only`, :mod:`.patterns`: training parts of a model, and the patterns that name parts.
"""
