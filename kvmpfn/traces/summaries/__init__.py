"""Summaries: what perf kvm stat, kvm_stat, KVM's statistics and its selftests counted."""
