"""Secure aggregation: the coordinator gets the sum of the platforms' releases, and nothing else.

Pure: no Flower, no files. Bonawitz et al. 2017 ("Practical secure aggregation for
privacy-preserving machine learning", the variant against an active server) on a fixed graph of
neighbours in the manner of Bell et al. 2020, with noise that is shared out among the platforms.

- :mod:`common.secagg.terms`: what everybody agrees on before a sum;
- :mod:`common.secagg.lattice`: from noisy numbers to whole numbers modulo 2^32 or 2^64, and back;
- :mod:`common.secagg.keys`: key pairs, agreed keys, key streams;
- :mod:`common.secagg.sharing`: Shamir's secret sharing;
- :mod:`common.secagg.protocol`: what a platform and the coordinator compute at each stage.
"""
