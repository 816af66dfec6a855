"""Generative models of the paper: GAN and VAE with and without coordinates, and how they collapse.

- :mod:`~coordrl.generative.data`: two-object Sort-of-Clevr, made on the device;
- :mod:`~coordrl.generative.networks`: generators, discriminator, autoencoder;
- :mod:`~coordrl.generative.objectives`: the paper's loss, R3GAN's, and the autoencoder's;
- :mod:`~coordrl.generative.objects`: which objects a picture shows, and where;
- :mod:`~coordrl.generative.measures`: how much of the data a generator has forgotten.
"""
