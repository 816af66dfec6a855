"""Generative models of the paper: GAN and VAE with and without coordinates, and how they collapse.

- :mod:`~coordrl.generative.data`: two-object Sort-of-Clevr, made on the device;
- :mod:`~coordrl.generative.folders`: LSUN bedrooms, or any folder of pictures;
- :mod:`~coordrl.generative.networks`: generators, discriminator, autoencoder;
- :mod:`~coordrl.generative.objectives`: the paper's loss, R3GAN's, and the autoencoder's;
- :mod:`~coordrl.generative.objects`: which objects a picture shows, and where;
- :mod:`~coordrl.generative.measures`: how much of the data a generator has forgotten;
- :mod:`~coordrl.generative.patches`: distance between any sets of pictures, by their patches;
- :mod:`~coordrl.generative.interpolation`: whether objects move or fade between two pictures;
- :mod:`~coordrl.generative.settings`: settings of a run;
- :mod:`~coordrl.generative.models`: one training step;
- :mod:`~coordrl.generative.training`: a whole run, and its evaluations;
- :mod:`~coordrl.generative.experiments`: many runs, for :mod:`~coordrl.generative.table` and
  :mod:`~coordrl.generative.figures`.
"""
