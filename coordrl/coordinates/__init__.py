"""The coordinate transform problem: the paper's tasks that convolution fails and CoordConv solves.

- :mod:`~coordrl.coordinates.data`: Not-so-Clevr, and its train-test splits;
- :mod:`~coordrl.coordinates.tasks`: place to pixel, place to picture, picture to place;
- :mod:`~coordrl.coordinates.networks`: the paper's networks with and without coordinates, and ours;
- :mod:`~coordrl.coordinates.training`: one run, its settings and its measurements;
- :mod:`~coordrl.coordinates.analysis`: what a network has learned;
- :mod:`~coordrl.coordinates.experiments`: many runs, for :mod:`~coordrl.coordinates.table` and
  :mod:`~coordrl.coordinates.figures`.
"""
