"""The data plane of one instance: what NGINX serves, how a change of it goes live, and how it is put back."""
