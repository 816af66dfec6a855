"""Scattered MNIST: a detector with coordinates, and one without.

- :mod:`~coordrl.detection.sources`: handwritten digits, from :mod:`coordrl.digits` or the user;
- :mod:`~coordrl.detection.data`: pictures of digits scattered over a canvas, and their boxes;
- :mod:`~coordrl.detection.boxes`: overlap, coding, suppression, RoIAlign;
- :mod:`~coordrl.detection.rpn`: anchors and the paper's region proposal network;
- :mod:`~coordrl.detection.roi_heads`: the second stage, which names the digits;
- :mod:`~coordrl.detection.faster_rcnn`: both stages on any backbone;
- :mod:`~coordrl.detection.metrics`: the paper's IOU figures, recall, average precision;
- :mod:`~coordrl.detection.training`: one run, its settings and its measurements;
- :mod:`~coordrl.detection.experiments`: many runs, for :mod:`~coordrl.detection.table` and
  :mod:`~coordrl.detection.figures`.
"""
