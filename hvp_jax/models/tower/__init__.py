"""The residual blocks of a tower: the plain form, and one arranged for TPUs."""
