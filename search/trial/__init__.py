"""Trial results as plain values, with Pareto dominance, hypervolume and modelled times."""
