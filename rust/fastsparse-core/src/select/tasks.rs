//! The items of a grid, cut into tasks that own whole bytes of the mask.

use crate::matrix::Matrix;

/// Items of a task: enough to hide the hand-over, few enough that a position in it fits 16 bits.
pub const TASK_ITEMS: usize = 1 << 15;

/// Most mask bytes of a task: a row of one item takes a byte.
pub const TASK_BYTES: usize = TASK_ITEMS;

/// Tasks over a grid whose first item is item `start` of the keys.
#[derive(Debug, Clone, Copy)]
pub struct Tasks {
    grid: Matrix,
    start: usize,
    /// Rows of a task; 1 where a row is cut into several.
    rows: usize,
    /// Tasks that a row is cut into; 1 where a task holds whole rows.
    per_row: usize,
}

/// Neighbouring items of a row within a task; the first one's bit is the lowest of a byte.
pub struct Piece {
    /// Index of the first item among all.
    pub item: usize,
    /// Position of the first item in the task.
    pub local: usize,
    /// Number of items.
    pub len: usize,
    /// Byte of the task's mask bytes where its bits begin.
    pub byte: usize,
}

impl Tasks {
    /// Cuts `grid`. With `join`, rows that fill their bytes make one long row: for keys that do not
    /// mind where a row ends.
    pub fn new(grid: Matrix, start: usize, join: bool) -> Tasks {
        let grid = if join && grid.cols.is_multiple_of(8) && grid.rows > 1 {
            Matrix { rows: 1, cols: grid.len() }
        } else {
            grid
        };
        let (rows, per_row) = if grid.cols > TASK_ITEMS {
            (1, grid.cols.div_ceil(TASK_ITEMS))
        } else {
            ((TASK_ITEMS / grid.cols.max(1)).min(grid.rows).max(1), 1)
        };
        Tasks { grid, start, rows, per_row }
    }

    /// Index of the first item.
    pub fn start(&self) -> usize {
        self.start
    }

    /// Items of a row.
    pub fn cols(&self) -> usize {
        self.grid.cols
    }

    /// Number of items.
    pub fn items(&self) -> usize {
        self.grid.len()
    }

    /// Items of the longest task.
    pub fn longest(&self) -> usize {
        if self.per_row > 1 { TASK_ITEMS } else { self.rows * self.grid.cols }
    }

    /// Number of tasks.
    pub fn count(&self) -> usize {
        if self.grid.is_empty() { 0 } else { self.grid.rows.div_ceil(self.rows) * self.per_row }
    }

    /// Index of the first item of a task.
    pub fn first_item(&self, task: usize) -> usize {
        let (row, part) = (task / self.per_row * self.rows, task % self.per_row);
        self.start + row * self.grid.cols + part * TASK_ITEMS
    }

    /// Bytes of the mask that a task owns: start, length.
    pub fn bytes(&self, task: usize) -> (usize, usize) {
        let (row, part) = (task / self.per_row * self.rows, task % self.per_row);
        if self.per_row > 1 {
            let first = part * TASK_ITEMS;
            let len = TASK_ITEMS.min(self.grid.cols - first).div_ceil(8);
            (row * self.grid.row_bytes() + first / 8, len)
        } else {
            let rows = self.rows.min(self.grid.rows - row);
            (row * self.grid.row_bytes(), rows * self.grid.row_bytes())
        }
    }

    /// The pieces of a task.
    pub fn pieces(&self, task: usize) -> impl Iterator<Item = Piece> + use<> {
        let (row, part) = (task / self.per_row * self.rows, task % self.per_row);
        let col = part * TASK_ITEMS;
        let len = (self.grid.cols - col).min(if self.per_row > 1 { TASK_ITEMS } else { usize::MAX });
        let first = self.first_item(task);
        let (cols, row_bytes) = (self.grid.cols, self.grid.row_bytes());
        (0..self.rows.min(self.grid.rows - row)).map(move |i| Piece {
            item: first + i * cols,
            local: i * cols,
            len,
            byte: i * row_bytes,
        })
    }

    /// Sets the bit of the item at a position of a task in the task's mask bytes, if `on`.
    #[inline(always)]
    pub fn set(&self, bits: &mut [u8], position: u16, on: bool) {
        let at = position as usize;
        let (row, col) = if self.rows == 1 { (0, at) } else { (at / self.grid.cols, at % self.grid.cols) };
        bits[row * self.grid.row_bytes() + col / 8] |= (on as u8) << (col % 8);
    }
}
