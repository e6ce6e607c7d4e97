"""What `python -m lit_distill.compare` is made of: the plan, the runs, the statistics, the table and the plots."""
