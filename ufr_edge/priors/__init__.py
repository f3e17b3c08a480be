"""Diffusion priors, schedules and the constrained sampler of the paper."""
