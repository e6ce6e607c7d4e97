"""The embedded data set: made on this machine from digits and photographs that scikit-learn ships.

* :mod:`.datamodule`: the data module.
* :mod:`.making`: makes the files, whole or not at all.
* :mod:`.rendering`: draws one clip from (seed, split, index).
"""
