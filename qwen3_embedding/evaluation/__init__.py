"""An Encoder or a Scorer in, numbers out: metrics, tasks, benchmarks, statistics, reports."""
