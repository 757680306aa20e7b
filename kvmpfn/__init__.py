"""A model of how KVM turns guest page faults into host pages."""

__version__ = "0.1.0"
