"""Other engines that decode with the weights of our `transformer`: what our own greedy and beam search must lead."""
