"""Which head to certify: heads compared before anything is bound."""
