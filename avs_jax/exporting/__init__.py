"""Writing a program of jax in the form that another runtime takes."""
