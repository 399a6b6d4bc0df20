mod matrix;
mod pure;
