"""The harness: suites, data, training, measurement, tables and figures."""

__version__ = "0.1.0"
