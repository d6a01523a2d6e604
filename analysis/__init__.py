"""Analyses of run tables: the scaling law, its checks, figures. It imports neither Ray nor the training code."""
