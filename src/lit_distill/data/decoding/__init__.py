"""Exact frames of a video, decoding no more than they need.

* :mod:`.decode`: the public face: frames by index, and what a file holds.
* :mod:`.container`, :mod:`.bitstream`, :mod:`.groups`: packets, slice headers and groups of pictures.
* :mod:`.layout`, :mod:`.frames`, :mod:`.pruned`, :mod:`.cropping`: which packets to decode, and the conversion.
* :mod:`.encode`: small videos for tests and the embedded data sets.
"""
