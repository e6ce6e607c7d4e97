"""What ``test``, ``predict``, ``export`` and ``select`` share.

* :mod:`.inputs`, :mod:`.preprocess`: from a path to a network's input.
* :mod:`.classifiers`, :mod:`.predictions`, :mod:`.rows`: classify, and keep the rows.
* :mod:`.evaluation`, :mod:`.selection`: accuracy and calibration; the best of an unlabelled pool.
* :mod:`.exported`, :mod:`.onnx_files`, :mod:`.sample_batches`: exported files and what they are checked on.
"""
