"""The parts of `python -m lit_distill.report`: what is looked at, how alike networks see it, and the page."""
