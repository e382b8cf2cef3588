"""One damped Newton step of any network."""
