"""Checkpoints in, one checkpoint out: linear, slerp, spherical mean, task vectors; streamed."""
