"""A LyttleNGINX database: what stands in its tables, and its way into ours."""
