"""An ensemble on disjoint shards: a request retrains only those it touches."""
