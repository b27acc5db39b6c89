"""The real protocol over a simulated operating system, in every order that matters."""
