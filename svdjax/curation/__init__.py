"""From raw videos to a training set: cut, measure, caption, filter; the paper's section 3 and appendix C."""
