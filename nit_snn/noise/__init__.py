"""Where epsilon comes from: streams, tables, Philox."""
