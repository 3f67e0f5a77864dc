"""Live testbeds, made of the parts in the sibling packages, local or as Ray actors; other load balancers to compare."""
