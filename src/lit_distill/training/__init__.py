"""What ``train`` does, and ``doctor``, which looks first.

* :mod:`.fit`: one training: build, train, leave the results.
* :mod:`.stages`, :mod:`.run_stages`: several trainings in a row.
* :mod:`.start_from`: weights of an earlier stage.
* :mod:`.doctor`: builds what ``train`` would, and shows what :mod:`lit_distill.diagnosis` finds.
* :mod:`.preset`, :mod:`.summary`: term weights that a data set sets; the table at the end.
"""
