"""Claims: what a paper says, as a schema, and a checker that holds results against it."""
