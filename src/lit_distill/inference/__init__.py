"""What ``test``, ``predict``, ``export`` and ``select`` share.

* :mod:`.inputs`: paths and arrays to a network's input, by :mod:`lit_distill.data.preprocess`.
* :mod:`.classifiers`, :mod:`.opened`: a network that classifies; the one of a run, or an exported file.
* :mod:`.predictions`, :mod:`.rows`: classify, and keep the rows.
* :mod:`.evaluation`, :mod:`.selection`: accuracy and calibration; the best of an unlabelled pool.
* :mod:`.exported`, :mod:`.onnx_files`, :mod:`.sample_batches`: exported files and what they are checked on.
"""
