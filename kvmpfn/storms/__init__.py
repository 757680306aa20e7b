"""Who invalidates: notifier clients, each an arrival process with a span, a hold and an action."""

from kvmpfn.storms.arrivals import bursts, closed_loop, periodic, poisson
from kvmpfn.storms.storm import Action, Arrival, Storm

__all__ = ["Action", "Arrival", "Storm", "bursts", "closed_loop", "periodic", "poisson"]
