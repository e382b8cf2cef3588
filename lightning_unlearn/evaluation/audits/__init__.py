"""Lower bounds on epsilon, held against what a certificate states."""
