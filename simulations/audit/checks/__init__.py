"""Each check of an audit: evidence in, findings out; pure."""
