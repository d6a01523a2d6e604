"""The paper "Scalable GANs with Transformers" as code: networks, objective, augmentation, EMA, scaling rule.

This package imports only torch and itself.

Shape suffixes used throughout this package:
    B batch   K image levels (1 = noisiest)   T tokens   D width   H heads   E head dimension
    C latent channels   Y latent rows   X latent columns   Z latent code   S sides (real, fake)
    P passes (clean, penalty)   N any number of samples
"""
