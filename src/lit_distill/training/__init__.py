"""What ``train`` does.

* :mod:`.fit`: one training: build, train, leave the results.
* :mod:`.stages`, :mod:`.run_stages`: several trainings in a row.
* :mod:`.start_from`: weights of an earlier stage.
* :mod:`.preset`, :mod:`.summary`: term weights that a data set sets; the table at the end.
"""
