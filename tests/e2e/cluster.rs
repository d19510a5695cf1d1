//! Whole clusters on their way through a repository and back, with what makes clusters differ: their size, their segments, their majors.

mod equality;
mod lag;
mod large;
mod oddities;
mod segments;
