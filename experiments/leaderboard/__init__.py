"""One model beside every rival on every data set and task: `unimp leaderboard`."""
