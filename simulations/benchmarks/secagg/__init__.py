"""What secure aggregation costs in a round, beside a round without it and Flower's own SecAgg+.

A round here is everything but the gradients. All K platforms take every stage for real, one after
the other in one process; the coordinator is another process, and what passes between them are bytes
as Flower encodes them, whose lengths are counted. Times are a process's own work, without
waiting for others and without a network. The sum of every measured round is compared with what was
added up.

What is compared:

- ``plain``: the platform adds noise (:func:`common.privacy.noise.add_gaussian_noise_`) and sends
  float32, the coordinator decodes and adds exactly. The checks of numbers that it also makes in a
  real round are left out: with masks there is nothing like them;
- ``secagg``: noise on the lattice, then all five stages as they are deployed: signatures, files of
  the session, the sum that the coordinator keeps on disk;
- ``secagg-drops``: d platforms drop out once they dealt shares, when it costs most;
- ``secagg-sparse``, ``secagg-sparse-drops``: the same where each platform has few neighbours;
- ``flower``, ``flower-drops``: the noise of ``plain`` under ``secaggplus_mod`` and
  ``SecAggPlusWorkflow``, see :mod:`simulations.benchmarks.secagg.flower`; with many platforms
  ``flower-sparse``, ``flower-sparse-drops``, with as many neighbours as ours.
"""
