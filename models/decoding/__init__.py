"""Decoding engines: one for autoregressive models over a cached step; families supply the step."""
