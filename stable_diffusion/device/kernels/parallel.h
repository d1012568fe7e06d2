// Tasks that are divided between the cores.
#pragma once

#include <algorithm>
#include <atomic>
#include <new>

// The tasks of one call, numbered 0 … n - 1; each free thread takes the next one.
class Tasks {
 public:
  Tasks(void (*task)(void *, int), void *context, int n) : task_(task), context_(context), n_(n) {}

  // Runs tasks until none is left.
  void work();

  bool are_left() const { return next_ < n_ && fits_; }
  bool fits() const { return fits_; }

 private:
  void (*const task_)(void *, int);
  void *const context_;
  const int n_;
  std::atomic<int> next_{0};
  std::atomic<bool> fits_{true};  // there was enough memory for every task so far

  friend class Pool;
  int n_wanted_ = 0, n_working_ = 0;  // other threads; guarded by the pool's mutex
};

// Runs all tasks on this thread and up to `cores` - 1 others, as soon as they wake up.
//
// Only threads that took a task are waited for, so a thread that the system does not run in time
// does not delay the others.
void do_all(Tasks &tasks, int cores);

// Runs task(i) for i < n on up to `cores` cores. Throws std::bad_alloc if a task throws it.
template <class Task>
static void parallel(int cores, int n, Task task) {
  Tasks tasks([](void *task, int i) { (*(Task *)task)(i); }, &task, n);
  if (std::min(cores, n) > 1)
    do_all(tasks, std::min(cores, n));
  else
    tasks.work();
  if (!tasks.fits()) throw std::bad_alloc();
}
