"""Raw files of public studies, from the services that hold them."""
